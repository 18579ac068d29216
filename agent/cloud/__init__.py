"""The platform's side: make keys, sign policies, open envelopes, receive."""
