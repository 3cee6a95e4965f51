"""The protocols of OSS and VOD: values and pure functions, without I/O and without a clock."""
