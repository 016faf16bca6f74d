"""Tools that several packages share and that are not about ECGs: errors, files, ids, precision, redaction, resuming."""
