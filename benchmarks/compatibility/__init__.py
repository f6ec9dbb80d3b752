"""Which flows of nflows, zuko and normflows work as channel and patch flows."""
