"""Speed and memory of MixerFlow, beside its own arithmetic and beside other libraries."""
