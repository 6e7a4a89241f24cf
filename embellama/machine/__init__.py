"""Facts about this computer: its devices, what was measured on it and kept, a process for what may crash.

No models and no texts: whoever measures something keeps it here.
"""
