// The official client for Node through a whole life. Argument: the model.
import fs from "node:fs";
import OpenAI from "openai";
const client = new OpenAI({ maxRetries: 0 });
const file = await client.files.create({ file: fs.createReadStream("t.jsonl"), purpose: "fine-tune" });
const asked = { model: process.argv[2], training_file: file.id, suffix: "node" };
let job = await client.fineTuning.jobs.create(asked);
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 100));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
const events = await client.fineTuning.jobs.listEvents(job.id, { limit: 2 });
const checkpoints = await client.fineTuning.jobs.checkpoints.list(job.id);
const result = await client.files.content(job.result_files[0]);
const listed = [];
for await (const one of client.fineTuning.jobs.list({ limit: 2 })) listed.push(one.id);
let refused = null;
try {
  const messages = [{ role: "user", content: "a" }];
  await client.chat.completions.create({ model: job.fine_tuned_model, messages }, { maxRetries: 20 });
} catch (error) {
  refused = error.code;
}
const gone = await client.models.delete(job.fine_tuned_model);
console.log(JSON.stringify({
  status: job.status, model: job.fine_tuned_model, newest: events.data[0].message,
  checkpoints: checkpoints.data.length, result: await result.text(), refused,
  listed: listed.includes(job.id), deleted: gone.deleted,
}));
