"""Tests that change the machine they run on; they need root."""
