// The theme's search takes only sections that have every word of a question. This leaves out the words that no
// section has together with the rarer ones, and the theme's own script does the rest.
(() => {
  const words = (text, separator) => text.toLowerCase().split(separator).filter(Boolean);

  function sections(index) {
    const separator = new RegExp(index.config.separator);
    const plain = (html) => html.replace(/<[^>]*>/g, " ");
    return {
      separator,
      texts: index.items.map(
        ({ title, text, path }) =>
          " " + words(plain([title, text, ...(path ?? [])].join(" ")), separator).join(" "),
      ),
    };
  }

  function narrowed(question, { separator, texts }) {
    const asked = [...new Set(words(question, separator))].map((word) => ({
      word,
      found: new Set([...texts.keys()].filter((section) => texts[section].includes(" " + word))),
    }));
    asked.sort((one, other) => one.found.size - other.found.size);
    let [kept, together] = [[], null];
    for (const { word, found } of asked) {
      const left = together ? new Set([...together].filter((section) => found.has(section))) : found;
      if (left.size) [kept, together] = [[...kept, word], left];
    }
    return kept.length && kept.length < asked.length ? kept.join(" ") : question;
  }

  const Plain = window.Worker;
  window.Worker = class extends Plain {
    postMessage(message, ...rest) {
      if (message?.type === 0 && message.data?.items) this.known = sections(message.data);
      const input = message?.data?.input;
      if (message?.type === 2 && this.known && typeof input === "string" && input.trim())
        message = { ...message, data: { ...message.data, input: narrowed(input, this.known) } };
      super.postMessage(message, ...rest);
    }
  };
})();
