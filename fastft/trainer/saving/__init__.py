"""What of a run is on disk: checkpoints, whole or absent, the place to go on from, and exported models."""
