"""What several papers share and that holds networks. A part knows tasks and roles, and no paper."""
