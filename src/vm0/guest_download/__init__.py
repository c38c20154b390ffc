"""Fills a run's folders from its manifest: in parallel, with retries, through an extractor that trusts no archive."""
