"""A model as a short program of linear layers, run on the weights that are left and on as few positions as differ."""
