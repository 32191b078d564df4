"""What a model computes, as data: one short file a family, read without torch."""
