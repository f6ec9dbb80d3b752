"""Flows of other papers that MixerFlow's tables compare with."""
