"""What several papers share and that holds networks: experts, denoisers, scores, critics, recovery, rounds."""
