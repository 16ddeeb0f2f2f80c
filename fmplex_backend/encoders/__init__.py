"""The input side of a vFM: from the wire's tensors to rows for the backbone. No torch."""
