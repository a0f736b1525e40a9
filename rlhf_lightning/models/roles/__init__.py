"""Models of a run by role: policy, reference, earlier policies, and what builds them."""
