"""The ground of every server: guard, keys and pages in web/, OpenAI's bodies as data in wire/."""
