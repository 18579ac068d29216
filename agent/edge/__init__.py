"""One outside thing per module; edge modules do not import each other."""
