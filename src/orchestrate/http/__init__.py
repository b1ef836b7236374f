"""The basis of every server: guard, limits and pages in web/, OpenAI's request and response bodies in
wire/."""
