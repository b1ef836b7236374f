"""The ground of every server: guard, limits and pages in web/, OpenAI's bodies as data in wire/."""
