"""What featuretap costs, measured beside its peers on the same model, input and moment."""
