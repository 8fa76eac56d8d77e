// SPDX-License-Identifier: Apache-2.0

// The Workload API as client.mjs wants it: by grpc-js and the standard's own .proto, or by the npm package `spiffe`,
// whose module is named.
import process from 'node:process';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const audience = 'clients';
const timeout = 2000; // milliseconds, of one call

// Each resolves or rejects as the call does; x509 calls take() with the SVIDs of each message.
export function connect(proto, module) {
  return module ? byPackage(module) : byProto(proto);
}

function byProto(proto) {
  const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(loader.loadSync(proto));
  const client = new SpiffeWorkloadAPI(process.env.SPIFFE_ENDPOINT_SOCKET, grpc.credentials.createInsecure());
  const header = new grpc.Metadata();
  header.set('workload.spiffe.io', 'true');
  const call = (method, request) => new Promise((done, fail) => client[method](request, header,
    { deadline: Date.now() + timeout }, (err, response) => err ? fail(err) : done(response)));
  return {
    x509: (take) => new Promise((done, fail) => client.FetchX509SVID({}, header)
      .on('data', (r) => take(r.svids)).on('error', fail).on('end', done)),
    tokens: async () => (await call('FetchJWTSVID', { audience: [audience] })).svids.map((s) => s.svid),
    validate: (svid) => call('ValidateJWTSVID', { audience, svid }),
  };
}

async function byPackage(module) {
  const client = (await import(module)).createClient();
  return {
    x509: async (take) => {
      for await (const r of client.fetchX509SVID({}).responses) take(r.svids);
    },
    tokens: async () => (await client.fetchJWTSVID({ audience: [audience], spiffeId: '' }, { timeout }).response).svids.map((s) => s.svid),
    validate: async (svid) => (await client.validateJWTSVID({ audience, svid }, { timeout })).response,
  };
}
