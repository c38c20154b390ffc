"""The tests of vm0; a package, so that test modules can import `tests.support`."""
