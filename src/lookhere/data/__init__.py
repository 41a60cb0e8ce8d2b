"""Manifests, decoding and its cache, batches, and the synthetic iris set."""
