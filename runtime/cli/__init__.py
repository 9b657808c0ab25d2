"""The command lines ebca-run and ebca-doctor."""
