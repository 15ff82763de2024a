"""The command line. Nothing here is needed to use featuretap from Python."""
