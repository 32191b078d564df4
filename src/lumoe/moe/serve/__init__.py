"""An HTTP server in the shape of OpenAI's API that re-plans precision and placement while it serves."""
