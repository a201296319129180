"""The door to clusters: submitting to Slurm, and weights for machines without internet."""
