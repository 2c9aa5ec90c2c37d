"""The devices and links of a job: set up, measured, and kept as a profile."""
