"""What the analog core does to the accuracy of a network on scikit-learn's digits."""
