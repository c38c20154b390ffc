"""Tools of the developers of vm0; not part of the distribution's package."""
