"""What runs make beyond a single network: one file per kind. `limbeck.grammar.artifact` has the network itself."""
