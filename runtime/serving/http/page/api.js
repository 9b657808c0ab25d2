// Calls of the service: with the key, errors as one text, events as they come.

const KEY = "ebca-key";

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let text = `the service answered with ${response.status}`;
  try {
    text = (await response.json()).error.message;
  } catch {
    // Something between here and the service has answered.
  }
  throw new Refused(response.status, text);
}

export const get = async (path) => (await call(path)).json();

export const remove = async (path) => (await call(path, { method: "DELETE" })).json();

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

// The address of a file that needs the key, for an <img>. The caller frees it.
export const blob = async (path) => URL.createObjectURL(await (await call(path)).blob());

// Calls onEvent(name, data) for each event of a job, until it has ended. EventSource could not send the key.
export async function events(job, onEvent) {
  const response = await call(`v1/jobs/${job}/events`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const name = /^event: (.*)$/m.exec(part);
      const data = /^data: (.*)$/m.exec(part);
      if (name && data) onEvent(name[1], JSON.parse(data[1]));
    }
  }
}
