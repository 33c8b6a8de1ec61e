"""The `evaluate` module over `hf_seqrec.metrics`."""
