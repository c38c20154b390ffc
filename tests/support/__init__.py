"""What several test packages share; nothing here is collected as a test of the product."""
