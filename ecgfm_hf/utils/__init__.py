"""What several rooms need and that is not about ECGs: errors, files, lazy imports, precision, redaction."""
