// SPDX-License-Identifier: GPL-3.0-or-later
// Queues an API-format workflow through @stable-canvas/comfyui-client and prints what came back: node client.mjs HOST:PORT FILE

import { readFile } from "node:fs/promises";
import { Client } from "@stable-canvas/comfyui-client";

const [host, file] = process.argv.slice(2);
const client = new Client({ api_host: host });
await client.connect();
const steps = [];
const output = await client.enqueue(JSON.parse(await readFile(file, "utf8")), { progress: ({ value, max }) => steps.push([value, max]) });
console.log(JSON.stringify({ steps, images: output.images.map((image) => image.data) }));
client.close();
process.exit(0);
