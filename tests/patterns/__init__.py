"""Small classifiers of 28x28 grey images, one for each pattern that networks from elsewhere have."""
