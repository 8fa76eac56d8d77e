// SPDX-License-Identifier: Apache-2.0

// A workload on Node: api.mjs speaks the Workload API, Node's own TLS does the rest. It listens with its X.509-SVID and
// calls a server with it and with JWT-SVIDs, until its input ends; then it prints what it counted.
//   node client.mjs workload.proto LISTEN TLS-ADDRESS JWT-ADDRESS SERVER-ID [MODULE]
import crypto from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from './api.mjs';

const [proto, listen, tlsAddress, jwtAddress, serverID, module] = process.argv.slice(2);
const pauseMs = 100, patienceMs = 20_000, retryMs = 1000;
const flows = {};
const flow = (name) => flows[name] ??= { Requests: 0, Failures: [], Retries: 0, Serials: {}, Identities: 0 };

const api = await connect(proto, module);

// The Workload API gives certificates as DER, one after the other; Node wants PEM.
function pem(bytes) {
  const der = Buffer.from(bytes);
  const blocks = [];
  for (let at = 0; at < der.length;) {
    if (der[at] !== 0x30 || der[at + 1] !== 0x82) throw new Error('no certificate of usual size');
    const end = at + 4 + der.readUInt16BE(at + 2);
    blocks.push(new crypto.X509Certificate(der.subarray(at, end)).toString());
    at = end;
  }
  return blocks.join('');
}

let held; // what TLS needs of the SVID of now
let server;
function take([svid]) {
  const key = crypto.createPrivateKey({ key: Buffer.from(svid.x509SvidKey), format: 'der', type: 'pkcs8' });
  held = { cert: pem(svid.x509Svid), key: key.export({ format: 'pem', type: 'pkcs8' }), ca: pem(svid.bundle) };
  if (server) return server.setSecureContext(held);
  const [host, port] = listen.split(':');
  server = https.createServer({ ...held, requestCert: true, rejectUnauthorized: true }, (_, res) => res.end('hello\n'));
  server.listen(Number(port), host);
}

async function follow() {
  for (;;) {
    await api.x509(take).catch((err) => console.error(`X.509-SVIDs: ${err.message}`));
    flow('server').Retries++;
    await sleep(retryMs);
  }
}

// Resolves on 200.
const get = (lib, url, options) => new Promise((done, fail) => {
  const req = lib.get(url, { agent: false, timeout: patienceMs, ...options }, (res) => {
    res.resume();
    res.on('end', () => res.statusCode === 200 ? done() : fail(new Error(`status ${res.statusCode}`)));
  });
  req.on('timeout', () => req.destroy(new Error('time-out')));
  req.on('error', fail);
});

// SPIFFE names its servers by URI, so the check of the host name is replaced by one of the ID.
const byTLS = (f) => get(https, `https://${tlsAddress}/`, {
  ...held,
  checkServerIdentity: (_, cert) => {
    if (cert.subjectaltname !== `URI:${serverID}`) return new Error(`the server is ${cert.subjectaltname}`);
    f.Serials[cert.serialNumber] = true;
  },
});

let token;
async function byToken(f) {
  try {
    const fresh = await api.tokens();
    await api.validate(fresh[0]);
    token = fresh[0];
    f.Identities = Math.max(f.Identities, fresh.length);
    f.Serials[token] = true;
  } catch (err) {
    if (!token) throw err;
    f.Retries++; // the last token serves on; the server judges whether it still may
  }
  await get(http, `http://${jwtAddress}/jwt`, { headers: { authorization: `Bearer ${token}` } });
}

let ended = false;
async function repeat(name, request) {
  const f = flow(name);
  while (!ended) {
    if (held) {
      f.Requests++;
      await request(f).catch((err) => f.Failures.push(String(err)));
    }
    await sleep(pauseMs);
  }
}

follow();
process.stdin.resume();
process.stdin.on('end', () => { ended = true; });
await Promise.all([repeat('server', byTLS), repeat('server by token', byToken)]);
console.log(JSON.stringify(flows));
process.exit(0);
