"""Parameters kept in server processes: sharded, versioned, updated by workers at their own pace."""
