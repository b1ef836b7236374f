"""Commands that use tuned models: chat, download, export, verify and deploy."""
