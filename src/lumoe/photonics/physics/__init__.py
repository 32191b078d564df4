"""What a ring, a weight bank, a detector, a link and a converter do, and the limits they set."""
