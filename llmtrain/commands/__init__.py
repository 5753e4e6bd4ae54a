"""What `llmtrain <command>` does, one file a command. Never imports torch."""
