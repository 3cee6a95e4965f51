"""What is said to OSS and VOD: values and pure functions, no I/O and no clock."""
