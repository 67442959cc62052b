"""What `make soak` runs: kills, damaged inputs, full disks, dead sources, an hour of stream."""
