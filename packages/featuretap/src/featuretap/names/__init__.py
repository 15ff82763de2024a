"""Beyond the one rule in :mod:`featuretap.naming`: what is named, and what else a name may mean."""
