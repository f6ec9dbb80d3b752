"""Flows of other libraries as nflows transforms, and the other way round: one file a library."""
