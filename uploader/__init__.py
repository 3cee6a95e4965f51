"""Upload large files to Alibaba Cloud ApsaraVideo VOD."""
