// Uses a server of E2B's API through E2B's own package for JavaScript.
//
//     sdk.mjs FEATURE,... [section...]
//
// The environment says where the package and the server are: OSIRIS_TEST_NODE,
// the directory that node_modules is in, and E2B_API_KEY, E2B_API_URL and
// E2B_SANDBOX_URL. The first argument says what there is beside the daemon's files
// and commands of plain words:
//
//     control  a control plane; without it E2B_DEBUG=true takes the daemon alone
//     copies   snapshots and other copies of sandboxes
//     shell    real processes
//     templates  real processes in files of their own, to build templates from
//     built    a template "from-go", which holds /opt/from-go, of 1 CPU
//
// Every section that fails is printed with its error, and the exit code is 1.

import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const {
  AuthenticationError,
  BuildError,
  CommandExitError,
  FileNotFoundError,
  FilesystemEventType,
  FileType,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  SandboxNotFoundError,
  Template,
  TimeoutError,
  waitForFile,
} = createRequire(process.env.OSIRIS_TEST_NODE + '/')('e2b')

const run = randomUUID().replaceAll('-', '') // tells the sandboxes of this run from others
const metadata = { run, punctuation: 'a&b=c+d%20e/f?g#h', 'key & = + % ü': 'ü 日本 \u{1f980}' }
const patience = 20_000 // milliseconds, until something counts as not happening
const text = 'first line\nsecond line: ü 日本\n'
const binary = Uint8Array.from({ length: 256 }, (_, i) => i)
const hour = 3_600_000

const [features, ...wanted] = process.argv.slice(2)
const has = (feature) => features.split(',').includes(feature)

/** Expects an error of exactly a class, with words in its message. */
async function rejects(promise, kind, ...words) {
  let error
  try {
    await promise
  } catch (e) {
    error = e
  }
  assert.ok(error, `no ${kind.name}`)
  assert.equal(error.constructor.name, kind.name, error)
  for (const word of words) assert.ok(error.message.includes(word), `${word} is not in: ${error.message}`)
  return error
}

/** Waits until a condition holds. */
async function eventually(condition, what) {
  for (const end = Date.now() + patience; Date.now() < end; await sleep(20)) {
    if (await condition()) return
  }
  assert.fail(`not within ${patience} ms: ${what}`)
}

const made = []

/** Creates a sandbox that is killed in the end. */
async function create(options = {}, ...template) {
  const sandbox = await Sandbox.create(...template, { timeoutMs: 120_000, metadata, ...options })
  made.push(sandbox)
  return sandbox
}

/** Calls f with a new directory of a sandbox. */
async function inDirectory(sandbox, f) {
  const base = `/tmp/sdktest-${randomUUID()}`
  await sandbox.files.makeDir(base)
  try {
    await f(base)
  } finally {
    await sandbox.files.remove(base)
  }
}

async function pages(paginator) {
  const all = []
  while (paginator.hasNext) all.push(await paginator.nextItems())
  return all
}

const names = (entries) => entries.map((e) => e.name)
const pids = async (sandbox) => (await sandbox.commands.list()).map((p) => p.pid)

// ------------------------------------------------------------ control plane

async function lifecycle() {
  const before = Date.now()
  const sandbox = await create({ envs: { GREETING: 'hello' } })
  assert.equal(await sandbox.isRunning(), true)

  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.equal(info.name, 'base')
  assert.deepEqual(info.metadata, metadata)
  assert.equal(info.state, 'running')
  assert.equal(info.lifecycle.onTimeout, 'kill')
  assert.ok(info.cpuCount > 0 && info.memoryMB > 0, info)
  assert.ok(info.startedAt > before - 2000 && info.startedAt < before + 60_000, info.startedAt)
  assert.ok(Math.abs(info.endAt - info.startedAt - 120_000) < 5000, info.endAt)
  assert.deepEqual(await Sandbox.getInfo(sandbox.sandboxId), info)
  assert.ok(Array.isArray(await sandbox.getMetrics()))

  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.kill(), false)
  assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
  assert.equal(await sandbox.isRunning(), false)
  await rejects(sandbox.getInfo(), SandboxNotFoundError)
  await rejects(sandbox.setTimeout(60_000), SandboxNotFoundError)
  await rejects(sandbox.pause(), SandboxNotFoundError)
  await rejects(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
  await rejects(sandbox.commands.list(), TimeoutError)
  await rejects(sandbox.files.read('/tmp/file'), TimeoutError)
  await rejects(sandbox.files.write('/tmp/file', 'text'), TimeoutError)
  await rejects(sandbox.files.list('/tmp'), TimeoutError)
  await rejects(sandbox.commands.run('true'), SandboxNotFoundError)
}

async function killInterrupts() {
  const sandbox = await create()
  const handle = await sandbox.commands.run('sleep 300', { background: true })
  setTimeout(() => Sandbox.kill(sandbox.sandboxId), 200)
  await rejects(handle.wait(), TimeoutError)
}

async function defaults() {
  const sandbox = await Sandbox.create()
  made.push(sandbox)
  const info = await sandbox.getInfo()
  assert.deepEqual(info.metadata, {})
  assert.ok(Math.abs(info.endAt - info.startedAt - 300_000) < 5000, info.endAt)
}

async function listing() {
  const common = { run: run + '-list', 'k&=+% ü': 'a&b=c+d%20e f/ü日本' }
  const all = []
  for (const n of [0, 1, 2]) all.push((await create({ metadata: { ...common, n: `${n}` } })).sandboxId)
  await create({ metadata: { ...common, 'k&=+% ü': 'a&b=c d%20e f/ü日本' } })
  const [first, second, third] = all
  const newest = [third, second, first]

  const ids = async ({ query, ...options } = {}) => {
    const found = await pages(Sandbox.list({ query: { metadata: common, ...query }, ...options }))
    return found.map((page) => page.map((i) => i.sandboxId))
  }
  assert.deepEqual(await ids(), [newest])
  assert.deepEqual(await ids({ order: 'asc' }), [all])
  assert.deepEqual(await ids({ limit: 2 }), [[third, second], [first]])
  assert.deepEqual(await ids({ limit: 2, order: 'asc' }), [[first, second], [third]])
  assert.deepEqual(await ids({ limit: 3 }), [newest])
  assert.deepEqual(await ids({ query: { state: ['running'] } }), [newest])
  assert.deepEqual(await ids({ query: { state: ['paused'] } }), [[]])
  assert.deepEqual(await ids({ query: { template: 'base' } }), [newest])
  assert.deepEqual(await ids({ query: { startedAfter: new Date(Date.now() - hour) } }), [newest])
  assert.deepEqual(await ids({ query: { startedAfter: new Date(Date.now() + hour) } }), [[]])

  const page = Sandbox.list({ query: { metadata: common }, limit: 2 })
  await page.nextItems()
  const rest = Sandbox.list({ query: { metadata: common }, limit: 2, nextToken: page.nextToken })
  const [item, ...more] = await rest.nextItems()
  assert.deepEqual(more, [])
  assert.equal(rest.hasNext, false)
  assert.equal(item.sandboxId, first)
  assert.equal(item.state, 'running')
  assert.deepEqual(item.metadata, { ...common, n: '0' })
  await rejects(Sandbox.list({ nextToken: 'nonsense' }).nextItems(), SandboxError)
}

async function timeouts() {
  const sandbox = await create({ timeoutMs: 60_000 })
  const left = async () => ((await sandbox.getInfo()).endAt - Date.now()) / 1000
  const between = async (low, high) => {
    const seconds = await left()
    assert.ok(low < seconds && seconds < high, `${seconds} s are left, not ${low} to ${high}`)
  }
  await sandbox.setTimeout(600_000)
  await between(590, 602)
  await Sandbox.setTimeout(sandbox.sandboxId, 300_000)
  await between(290, 302)

  await sandbox.files.write('first', text)
  const second = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 30_000 })
  assert.equal(second.sandboxId, sandbox.sandboxId)
  await between(290, 302) // never shortened
  assert.equal(await second.files.read('first'), text)
  assert.equal(await sandbox.connect({ timeoutMs: 900_000 }), sandbox)
  await between(890, 902)

  await sandbox.setTimeout(1000)
  await eventually(async () => !(await sandbox.isRunning()), 'the end of a sandbox of one second')
  await rejects(sandbox.getInfo(), SandboxNotFoundError)
  await rejects(sandbox.files.read('first'), TimeoutError)
}

async function refusals() {
  await rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  await rejects(Sandbox.list({ apiKey: 'e2b_nonsense' }).nextItems(), AuthenticationError)
  await rejects(Sandbox.create('no-such-template'), SandboxError, '404', 'no-such-template')
  await rejects(Sandbox.create({ timeoutMs: 0 }), SandboxError, '400')
  await rejects(Sandbox.create({ timeoutMs: 1e11 }), SandboxError, '400')
  await rejects(Sandbox.getInfo('Not-An-ID'), SandboxError, '400')
  const unknown = 'i' + '0'.repeat(20)
  await rejects(Sandbox.connect(unknown), SandboxNotFoundError)
  await rejects(Sandbox.getInfo(unknown), SandboxNotFoundError)
  await rejects(Sandbox.setTimeout(unknown, 60_000), SandboxNotFoundError)
  assert.equal(await Sandbox.kill(unknown), false)
}

async function pauses() {
  const sandbox = await create({ metadata: { run: run + '-pause' } })
  await sandbox.files.write('kept', text)
  const sleeper = await sandbox.commands.run('sleep 300', { background: true, timeoutMs: 0 })
  const interrupted = rejects(sleeper.wait(), TimeoutError)
  interrupted.catch(() => {}) // it is awaited below
  assert.equal(await sandbox.pause(), true)
  assert.equal(await sandbox.pause(), false)
  await interrupted
  assert.equal((await sandbox.getInfo()).state, 'paused')
  const paused = await Sandbox.list({ query: { metadata: { run: run + '-pause' }, state: ['paused'] } }).nextItems()
  assert.deepEqual(paused.map((i) => i.sandboxId), [sandbox.sandboxId])
  assert.equal(await sandbox.isRunning(), false)
  await rejects(sandbox.files.read('kept'), TimeoutError)

  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 200_000 })
  assert.equal((await again.getInfo()).state, 'running')
  assert.equal(await again.files.read('kept'), text)
  assert.equal(await sandbox.files.read('kept'), text)
  assert.ok((await pids(sandbox)).includes(sleeper.pid), 'the process is gone')
  assert.equal(await sandbox.commands.kill(sleeper.pid), true)
  assert.equal(await sandbox.betaPause(), true)
  assert.equal(await sandbox.kill(), true)
  await rejects(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
}

async function pausesFilesOnly() {
  const sandbox = await create()
  await sandbox.files.write('kept', text)
  const sleeper = await sandbox.commands.run('sleep 300', { background: true, timeoutMs: 0 })
  const interrupted = rejects(sleeper.wait(), TimeoutError)
  interrupted.catch(() => {}) // it is awaited below
  assert.equal(await sandbox.pause({ keepMemory: false }), true)
  await interrupted
  await sandbox.connect()
  assert.equal(await sandbox.files.read('kept'), text)
  assert.ok(!(await pids(sandbox)).includes(sleeper.pid), 'the process goes on')
}

async function resumesByItself() {
  const sandbox = await create({ lifecycle: { onTimeout: 'pause', autoResume: true } })
  assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true })
  await sandbox.files.write('kept', text)
  await sandbox.setTimeout(1000)
  await eventually(async () => (await sandbox.getInfo()).state === 'paused', 'a pause by itself')
  assert.equal(await sandbox.files.read('kept'), text)
  assert.equal((await sandbox.getInfo()).state, 'running')
}

async function snapshots() {
  const sandbox = await create()
  await sandbox.files.write('kept', text)
  const name = 'sdk-' + run
  const named = await sandbox.createSnapshot({ name })
  assert.ok(named.names.some((n) => n.includes(name)), named.names)
  const unnamed = await Sandbox.createSnapshot(sandbox.sandboxId)
  const ids = [named.snapshotId, unnamed.snapshotId]
  const listed = (await pages(sandbox.listSnapshots({ limit: 1 }))).flat()
  assert.deepEqual(listed.map((s) => s.snapshotId).sort(), [...ids].sort())

  await sandbox.files.write('kept', 'changed since')
  for (const id of ids) {
    const copy = await create({}, id)
    assert.equal(await copy.files.read('kept'), text)
    await copy.kill()
  }
  assert.equal(await sandbox.files.read('kept'), 'changed since')
  for (const id of ids) {
    assert.equal(await Sandbox.deleteSnapshot(id), true)
    assert.equal(await Sandbox.deleteSnapshot(id), false)
  }
}

async function forks() {
  const sandbox = await create()
  await sandbox.files.write('kept', text)
  const children = await sandbox.fork({ timeoutMs: 60_000, count: 2 })
  assert.equal(children.length, 2)
  for (const child of children) {
    made.push(child)
    assert.equal(await child.files.read('kept'), text)
    await child.files.write('kept', 'changed')
  }
  assert.equal(await sandbox.files.read('kept'), text)
  assert.equal(new Set([sandbox, ...children].map((s) => s.sandboxId)).size, 3)
}

/** Sends a request as a browser does, but to the server's address. */
function request(url, host, body) {
  return new Promise((resolve, reject) => {
    const headers = { Host: host }
    if (body) Object.assign(headers, { 'Content-Type': 'multipart/form-data; boundary=XX', 'Content-Length': body.length })
    const sent = http.request(url, { method: body ? 'POST' : 'GET', headers, timeout: patience }, (answer) => {
      const chunks = []
      answer.on('data', (chunk) => chunks.push(chunk))
      answer.on('end', () => resolve({ status: answer.statusCode, body: Buffer.concat(chunks) }))
      answer.on('error', reject)
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

async function signedUrls() {
  const sandbox = await create()
  // E2B finds the sandbox by the name of the host, which this server is not
  // reached by.
  const host = sandbox.getHost(49983)
  const head = 'Content-Disposition: form-data; name="file"; filename="any"'
  const form = Buffer.concat([Buffer.from(`--XX\r\n${head}\r\n\r\n`), binary, Buffer.from('\r\n--XX--\r\n')])
  for (const options of [{}, { useSignatureExpiration: 60 }]) {
    const uploadUrl = await sandbox.uploadUrl('/tmp/signed', options)
    const written = await request(uploadUrl, host, form)
    assert.equal(written.status, 200)
    assert.equal(JSON.parse(written.body)[0].path, '/tmp/signed')
    assert.deepEqual(await sandbox.files.read('/tmp/signed', { format: 'bytes' }), binary)
    const url = await sandbox.downloadUrl('/tmp/signed', options)
    assert.deepEqual(await request(url, host), { status: 200, body: Buffer.from(binary) })
    assert.equal((await request(url.replace('signed', 'other'), host)).status, 401)
    assert.equal((await request(uploadUrl, host)).status, 401)
    await sandbox.files.remove('/tmp/signed')
  }
  const expired = await sandbox.downloadUrl('/tmp/x', { useSignatureExpiration: -60 })
  assert.equal((await request(expired, host)).status, 401)
  const unsigned = new URL(expired)
  unsigned.search = '?path=/tmp/x'
  assert.equal((await request(unsigned, host)).status, 401)
  assert.equal((await request(new URL('/metrics', expired), host)).status, 401)
  assert.equal((await request(new URL('/health', expired), host)).status, 204)
}

async function environment() {
  const sandbox = await create({ envs: { GREETING: 'hello & ü', BOTH: 'sandbox' } })
  const script = 'echo "$GREETING $BOTH $E2B_SANDBOX_ID $OWN"'
  const { stdout } = await sandbox.commands.run(script, { envs: { BOTH: 'command', OWN: 'x' } })
  assert.equal(stdout, `hello & ü command ${sandbox.sandboxId} x\n`)
}

async function listedTemplates() {
  const headers = { 'X-API-Key': process.env.E2B_API_KEY }
  const answer = await fetch(process.env.E2B_API_URL + '/v2/templates', { headers })
  return Object.fromEntries((await answer.json()).flatMap((t) => t.aliases.map((name) => [name, t])))
}

async function templates() {
  const name = 'javascript-' + run.slice(0, 12)
  assert.equal(await Template.exists(name), false)
  const context = mkdtempSync(join(tmpdir(), 'sdktest-'))
  const logs = []
  const onBuildLogs = (entry) => logs.push(entry.message)
  const said = (want) => assert.ok(logs.some((line) => line.includes(want)), `${want} is not in: ${logs.join('\n')}`)
  let built
  try {
    mkdirSync(join(context, 'app/data'), { recursive: true })
    writeFileSync(join(context, 'app/run.sh'), 'echo running\n')
    writeFileSync(join(context, 'app/data/values.txt'), text)
    symlinkSync('data/values.txt', join(context, 'app/link'))
    writeFileSync(join(context, 'requirements.txt'), 'pandas\n')
    const template = Template({ fileContextPath: context })
      .fromTemplate('base')
      .copy('requirements.txt', '/srv/app/')
      .copy('app', '/opt/code', { user: 'root', mode: 0o755 })
      .copy('app/*/*.txt', 'values')
      .setEnvs({ GREETING: 'hello' })
      .setWorkdir('/srv/app')
      .runCmd('echo "$GREETING from $(pwd) by $(whoami)"; echo careful >&2')
      .runCmd('mkdir /opt/packages && cp requirements.txt /opt/packages/pandas', { user: 'root' })
      .setUser('root')
      .setStartCmd('touch /run/started && exec sleep 1000', waitForFile('/run/started'))
    built = await Template.build(template, name, { cpuCount: 4, memoryMB: 2048, onBuildLogs })
    for (const want of ['[stdout]: hello from /srv/app by user', '[stderr]: careful', "Uploaded 'app'", 'Template is ready']) said(want)

    logs.length = 0
    const other = Template({ fileContextPath: context }).fromImage('ubuntu:24.04').copy('app', '/opt/code', { user: 'root', mode: 0o755 })
    await Template.build(other, name + '-image', { onBuildLogs })
    said("Skipping upload of 'app'")
  } finally {
    rmSync(context, { recursive: true })
  }

  assert.equal(await Template.exists(name), true)
  assert.equal(await Template.exists('mock-team/' + name), true)
  const listed = (await listedTemplates())[name]
  assert.deepEqual(
    [listed.templateID, listed.cpuCount, listed.memoryMB, listed.buildStatus],
    [built.templateId, 4, 2048, 'ready'],
  )

  const sandbox = await create({}, name)
  const info = await sandbox.getInfo()
  assert.deepEqual([info.cpuCount, info.memoryMB, info.name], [4, 2048, name])
  const script = 'cat requirements.txt /opt/packages/pandas; /bin/sh /opt/code/run.sh; whoami; pwd; echo "[$GREETING]"'
  assert.equal((await sandbox.commands.run(script)).stdout, 'pandas\npandas\nrunning\nroot\n/srv/app\n[]\n')
  assert.equal(await sandbox.files.read('/opt/code/link'), text)
  assert.equal(await sandbox.files.read('/home/user/values/data/values.txt'), text)
  const stat = await sandbox.commands.run("stat -c '%U %a' /opt/code/data/values.txt requirements.txt")
  assert.equal(stat.stdout, 'root 755\nuser 644\n')
  assert.equal(await sandbox.files.exists('/run/started'), true)

  const tags = async () => Object.fromEntries((await Template.getTags(name)).map((t) => [t.tag, t.buildId]))
  assert.equal((await Template.assignTags(name, ['v1', 'stable'])).buildId, built.buildId)
  assert.deepEqual(await tags(), { default: built.buildId, stable: built.buildId, v1: built.buildId })
  await Template.removeTags(name, 'v1')
  assert.deepEqual(Object.keys(await tags()).sort(), ['default', 'stable'])
  await create({}, name + ':stable')
  await rejects(create({}, name + ':v1'), SandboxError, "tag 'v1' does not exist")

  // A failure says what went wrong, and where; the old build stays.
  logs.length = 0
  const failing = Template().fromTemplate(name).runCmd('echo first').runCmd('echo no such package >&2; exit 7')
  await rejects(Template.build(failing, name, { onBuildLogs }), BuildError, 'exit status 7')
  said('no such package')
  assert.equal((await listedTemplates())[name].buildStatus, 'error')
  await create({}, name)

  const behind = Template().fromTemplate(name).runCmd('echo behind')
  const started = await Template.buildInBackground(behind, name + '-background', { tags: ['v2'] })
  assert.deepEqual(started.tags, ['v2'])
  let status
  await eventually(async () => (status = await Template.getBuildStatus(started)).status === 'ready', 'it is built')
  assert.ok(status.logEntries.some((entry) => entry.message.includes('behind')))
  await create({}, name + '-background:v2')
}

async function builtElsewhere() {
  assert.equal(await Template.exists('from-go'), true)
  const sandbox = await create({}, 'from-go')
  assert.equal((await sandbox.getInfo()).cpuCount, 1)
  assert.equal(await sandbox.files.read('/opt/from-go'), 'built\n')
}

// ------------------------------------------------------------ the daemon

function streamOf(...chunks) {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk)
      controller.close()
    },
  })
}

async function bytesOf(stream) {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return new Uint8Array(Buffer.concat(chunks))
}

async function files(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { files } = sandbox
    const info = await files.write(`${base}/text`, text)
    assert.deepEqual([info.name, info.path, info.type], ['text', `${base}/text`, FileType.FILE])
    assert.equal(await files.read(`${base}/text`), text)
    await files.write(`${base}/text`, 'short')
    assert.equal(await files.read(`${base}/text`), 'short')
    await files.write(`${base}/binary`, binary.buffer)
    assert.deepEqual(await files.read(`${base}/binary`, { format: 'bytes' }), binary)
    const blob = await files.read(`${base}/binary`, { format: 'blob' })
    assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), binary)
    await files.write(`${base}/blob`, new Blob([text]))
    assert.equal(await files.read(`${base}/blob`), text)
    await files.write(`${base}/empty`, '')
    assert.equal(await files.read(`${base}/empty`), '')

    await files.write(`${base}/stream`, streamOf(binary, binary, binary))
    const stream = await files.read(`${base}/stream`, { format: 'stream' })
    assert.deepEqual(Buffer.from(await bytesOf(stream)), Buffer.concat([binary, binary, binary]))
    await files.write(`${base}/zip`, text.repeat(1000), { gzip: true })
    assert.equal(await files.read(`${base}/zip`, { gzip: true }), text.repeat(1000))
    await files.write(`${base}/octets`, binary.buffer, { useOctetStream: true })
    assert.deepEqual(await files.read(`${base}/octets`, { format: 'bytes' }), binary)

    const odd = `${base}/a dir/ü & 日本 + 100% #?.txt`
    assert.equal((await files.write(odd, text)).path, odd)
    assert.equal(await files.read(odd), text)
    assert.deepEqual((await files.list(`${base}/a dir`)).map((e) => e.path), [odd])

    await rejects(files.read(`${base}/missing`), FileNotFoundError, 'missing')
    await rejects(files.read(`${base}/missing`, { format: 'stream' }), FileNotFoundError)
    await rejects(files.read(base), InvalidArgumentError)
    await rejects(files.write(base, text), InvalidArgumentError)
    await rejects(files.read(`${base}/text`, { user: 'nobody-of-that-name' }), AuthenticationError)
  })
}

async function manyFiles(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { files } = sandbox
    const entries = Array.from({ length: 40 }, (_, n) => ({ path: `${base}/many/${n}`, data: `file ${n}` }))
    entries.push({ path: `${base}/many/ü &`, data: binary.buffer })
    const written = await files.write(entries)
    assert.deepEqual(written.map((i) => i.path), entries.map((e) => e.path))
    for (const { path, data } of entries.slice(0, 3)) assert.equal(await files.read(path), data)
    assert.deepEqual(await files.read(`${base}/many/ü &`, { format: 'bytes' }), binary)
    assert.equal((await files.list(`${base}/many`)).length, 41)
    const apart = await Promise.all(entries.map(({ path }) => files.write(`${path}.apart`, path)))
    assert.deepEqual(names(apart), names(written).map((name) => `${name}.apart`))
  })
}

async function bigFile(sandbox) {
  // The same noise again and again is quick to compress, which both ends do.
  const noise = randomBytes(16 << 10)
  const content = new Uint8Array(512 * (4 + noise.length))
  for (let n = 0; n < 512; n++) {
    new DataView(content.buffer).setUint32(n * (4 + noise.length), n)
    content.set(noise, n * (4 + noise.length) + 4)
  }
  const same = (got) => assert.equal(Buffer.compare(got, content), 0, 'it changed on its way')
  await inDirectory(sandbox, async (base) => {
    const { files } = sandbox
    await files.write(`${base}/big`, content.buffer)
    assert.equal((await files.getInfo(`${base}/big`)).size, content.length)
    same(await files.read(`${base}/big`, { format: 'bytes' }))
    await files.write(`${base}/big`, new Blob([content]).stream())
    same(await bytesOf(await files.read(`${base}/big`, { format: 'stream' })))
  })
}

async function directories(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { files } = sandbox
    assert.equal(await files.makeDir(`${base}/x/y/z`), true)
    assert.equal(await files.makeDir(`${base}/x/y/z`), false)
    await files.write(`${base}/x/y/file`, '12345')

    const paths = async (depth) => (await files.list(base, { depth })).map((e) => e.path.slice(base.length))
    assert.deepEqual(await paths(1), ['/x'])
    assert.deepEqual(await paths(2), ['/x', '/x/y'])
    assert.deepEqual(await paths(9), ['/x', '/x/y', '/x/y/file', '/x/y/z'])

    const file = await files.getInfo(`${base}/x/y/file`)
    const { name, path, type, size, mode, permissions, symlinkTarget } = file
    assert.deepEqual([name, path, type, size], ['file', `${base}/x/y/file`, FileType.FILE, 5])
    assert.deepEqual([mode, permissions, symlinkTarget], [0o644, '-rw-r--r--', undefined])
    assert.ok(Math.abs(Date.now() - file.modifiedTime) < 60_000, file.modifiedTime)
    const dir = await files.getInfo(`${base}/x`)
    assert.deepEqual([dir.type, dir.mode, dir.permissions], [FileType.DIR, 0o755, 'drwxr-xr-x'])

    assert.equal(await files.exists(`${base}/x`), true)
    assert.equal(await files.exists(`${base}/x/y/file`), true)
    assert.equal(await files.exists(`${base}/nothing`), false)
    const moved = await files.rename(`${base}/x/y/file`, `${base}/new/place`)
    assert.deepEqual([moved.name, moved.path, moved.size], ['place', `${base}/new/place`, 5])
    assert.equal(await files.exists(`${base}/x/y/file`), false)
    await files.rename(`${base}/x`, `${base}/w`)
    assert.equal(await files.exists(`${base}/w/y/z`), true)
    await files.remove(`${base}/w`)
    await files.remove(`${base}/w`)
    assert.deepEqual(names(await files.list(base)), ['new'])

    await rejects(files.list(`${base}/nothing`), FileNotFoundError)
    await rejects(files.getInfo(`${base}/nothing`), FileNotFoundError)
    await rejects(files.rename(`${base}/nothing`, `${base}/else`), FileNotFoundError)
    await files.makeDir(`${base}/empty`)
    await rejects(files.rename(`${base}/new`, `${base}/empty`), SandboxError)
    await rejects(files.list(`${base}/new/place`), InvalidArgumentError)
    await rejects(files.makeDir(`${base}/new/place`), InvalidArgumentError)
  })
}

async function relativePaths(sandbox) {
  const { files } = sandbox
  const name = `sdktest-${randomUUID()}`
  const { path } = await files.write(name, text)
  try {
    assert.ok(path.startsWith('/') && path.endsWith('/' + name), path)
    assert.equal(await files.read(path), text)
    assert.equal((await files.getInfo(name)).path, path)
    assert.equal((await sandbox.commands.run(`cat ${name}`)).stdout, text)
  } finally {
    await files.remove(name)
  }
  assert.equal(await files.exists(path), false)
}

async function watching(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { files } = sandbox
    await files.write(`${base}/old`, 'text')
    const shallow = []
    const deep = []
    let exits = 0
    const onExit = () => exits++
    const plain = await files.watchDir(base, (e) => shallow.push(e), { includeEntry: true, onExit })
    const recursive = await files.watchDir(base, (e) => deep.push(e), { recursive: true, onExit })
    await files.write(`${base}/new`, 'text')
    await files.rename(`${base}/old`, `${base}/moved`)
    await files.remove(`${base}/new`)
    await files.makeDir(`${base}/sub`)
    await files.makeDir(`${base}/sub/below`)

    const { CREATE, REMOVE, RENAME, WRITE } = FilesystemEventType
    const expected = [
      [shallow, 'new', CREATE],
      [shallow, 'new', WRITE],
      [shallow, 'old', RENAME],
      [shallow, 'moved', CREATE],
      [shallow, 'new', REMOVE],
      [shallow, 'sub', CREATE],
      [deep, 'sub', CREATE],
      [deep, 'sub/below', CREATE],
    ]
    for (const [seen, name, type] of expected) {
      await eventually(() => seen.some((e) => e.name === name && e.type === type), `${type} ${name}`)
    }
    assert.deepEqual(shallow.filter((e) => e.name.includes('/')), [])
    const [moved] = shallow.filter((e) => e.name === 'moved' && e.type === CREATE)
    assert.deepEqual([moved.entry.path, moved.entry.size], [`${base}/moved`, 4])
    assert.deepEqual(shallow.filter((e) => e.type === REMOVE && e.entry), [])

    await plain.stop()
    await recursive.stop()
    await eventually(() => exits === 2, 'that both watchers ended')
    await rejects(files.watchDir(`${base}/nothing`, () => {}), FileNotFoundError)
    await rejects(files.watchDir(`${base}/moved`, () => {}), InvalidArgumentError)
  })
}

async function commands(sandbox) {
  const { commands } = sandbox
  const { stdout, stderr, exitCode, error } = await commands.run('echo hello world')
  assert.deepEqual([stdout, stderr, exitCode, error], ['hello world\n', '', 0, undefined])
  await rejects(commands.run('false'), CommandExitError)
  const failed = await rejects(commands.run('exit 3'), CommandExitError, 'exit status 3')
  assert.deepEqual([failed.exitCode, failed.stdout, failed.error], [3, '', 'exit status 3'])
  await rejects(commands.run('no-such-program-anywhere'), CommandExitError, '127')
  await rejects(commands.run('true', { cwd: '/no/such/dir' }), InvalidArgumentError, '/no/such/dir')
  await rejects(commands.run('true', { user: 'nobody-of-that-name' }), AuthenticationError)
  await rejects(commands.connect(999999), NotFoundError)
  await rejects(commands.sendStdin(999999, 'text'), NotFoundError)
  assert.equal(await commands.kill(999999), false)
  const results = await Promise.all(Array.from({ length: 10 }, (_, n) => commands.run(`echo ${n}`)))
  assert.deepEqual(results.map((r) => r.stdout), results.map((_, n) => `${n}\n`))
}

async function stdin(sandbox) {
  const { commands } = sandbox
  const chunks = []
  const cat = await commands.run('cat', { background: true, stdin: true, onStdout: (chunk) => chunks.push(chunk) })
  await cat.sendStdin('one\n')
  await commands.sendStdin(cat.pid, Buffer.from('two ü\n'))
  await cat.closeStdin()
  assert.equal((await cat.wait()).stdout, 'one\ntwo ü\n')
  assert.equal(chunks.join(''), 'one\ntwo ü\n')

  assert.equal((await commands.run('cat')).stdout, '') // there is nothing to be read
  for (const stdin of [true, false]) {
    const deaf = await commands.run('sleep 300', { background: true, stdin })
    await commands.closeStdin(deaf.pid)
    await deaf.closeStdin()
    await rejects(deaf.sendStdin('too late'), SandboxError, 'stdin')
    await deaf.kill()
    await rejects(deaf.wait(), CommandExitError)
  }
}

async function background(sandbox) {
  const { commands } = sandbox
  const handle = await commands.run('sleep 300', { background: true, timeoutMs: 0 })
  const listed = (await commands.list()).find((p) => p.pid === handle.pid)
  assert.deepEqual([listed.cmd, listed.args], ['/bin/bash', ['-l', '-c', 'sleep 300']])
  await handle.disconnect()
  assert.ok((await pids(sandbox)).includes(handle.pid), 'it ended with its handle')

  const again = await commands.connect(handle.pid)
  assert.equal(again.pid, handle.pid)
  assert.equal(await commands.kill(handle.pid), true)
  const killed = await rejects(again.wait(), CommandExitError)
  assert.deepEqual([killed.exitCode, killed.error], [-1, 'signal: killed'])
  await eventually(async () => !(await pids(sandbox)).includes(handle.pid), 'that it is gone')
  assert.equal(await commands.kill(handle.pid), false)
  const remembered = await commands.connect(handle.pid)
  await rejects(remembered.wait(), CommandExitError)
}

async function commandTimeout(sandbox) {
  const began = Date.now()
  await rejects(sandbox.commands.run('sleep 300', { timeoutMs: 1000 }), TimeoutError)
  const took = Date.now() - began
  assert.ok(took > 900 && took < 10_000, `it took ${took} ms`)
  const gone = async () => !(await sandbox.commands.list()).some((p) => p.args.at(-1) === 'sleep 300')
  await eventually(gone, 'the end of what timed out')
}

async function shell(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { commands, files } = sandbox
    const stdout = async (...args) => (await commands.run(...args)).stdout.trim()
    const out = []
    const err = []
    const failed = await rejects(
      commands.run('echo "out $WHO"; echo "err" >&2; pwd; exit 7', {
        envs: { WHO: 'ü & me' },
        cwd: base,
        onStdout: (chunk) => out.push(chunk),
        onStderr: (chunk) => err.push(chunk),
      }),
      CommandExitError,
    )
    assert.deepEqual([failed.exitCode, failed.stdout, failed.stderr], [7, `out ü & me\n${base}\n`, 'err\n'])
    assert.deepEqual([out.join(''), err.join('')], [failed.stdout, failed.stderr])

    const [me, home, cwd] = (await stdout('echo $USER; echo $HOME; pwd')).split('\n')
    assert.equal(cwd, home)
    assert.equal(await stdout('echo $USER $HOME', { user: me }), `${me} ${home}`)
    assert.equal(await stdout('echo $USER $LOGNAME', { user: 'root' }), 'root root')
    await files.write(`${base}/mine`, text)
    assert.equal((await files.getInfo(`${base}/mine`)).owner, me)
    await commands.run(`test -O ${base}/mine`)
    await files.write(`${base}/yours`, text, { user: 'root' })
    await files.write(`${base}/yours`, text)
    assert.equal((await files.getInfo(`${base}/yours`)).owner, me)

    await commands.run(`ln -s mine ${base}/link; mkdir ${base}/dir; ln -s dir ${base}/dirlink`)
    const link = await files.getInfo(`${base}/link`)
    assert.deepEqual([link.symlinkTarget, link.type], [`${base}/mine`, FileType.FILE])
    assert.equal((await files.getInfo(`${base}/dirlink`)).type, FileType.DIR)
    assert.equal(await files.read(`${base}/link`), text)

    const big = (await commands.run("head -c 3000000 /dev/zero | tr '\\0' x")).stdout
    assert.ok(big === 'x'.repeat(3_000_000), `${big.length} characters came`)
    assert.equal((await commands.run("printf 'a\\xc3'; sleep 0.1; printf '\\xbcz'")).stdout, 'aüz')
  })
}

async function callbacks(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const { commands, files } = sandbox
    const wait = (name) => `until test -e ${base}/${name}; do sleep 0.05; done`
    const seen = []
    const handle = await commands.run(`echo first; ${wait('go')}; echo second`, {
      background: true,
      onStdout: async (chunk) => {
        seen.push(chunk)
        if (seen.length === 1) await files.write(`${base}/go`, '') // it is still running
      },
    })
    assert.equal((await handle.wait()).stdout, 'first\nsecond\n')
    assert.equal(seen.join(''), 'first\nsecond\n')

    const first = await commands.run(`${wait('on')}; echo seen; exit 4`, { background: true })
    const second = await commands.connect(first.pid)
    await files.write(`${base}/on`, '')
    for (const h of [first, second]) {
      const failed = await rejects(h.wait(), CommandExitError)
      assert.deepEqual([failed.exitCode, failed.stdout], [4, 'seen\n'])
    }
  })
}

async function terminal(sandbox) {
  await inDirectory(sandbox, async (base) => {
    const wait = (name) => `until test -e ${base}/${name}; do sleep 0.05; done`
    let output = ''
    const onData = (data) => (output += Buffer.from(data))
    const handle = await sandbox.pty.create({ cols: 97, rows: 31, onData, envs: { PS1: '' } })
    // It waits before it exits: the kernel throws away what of a terminal was not
    // read by then.
    const line = `stty size; ${wait('resized')}; stty size; ${wait('seen')}; exit 5\n`
    await sandbox.pty.sendInput(handle.pid, Buffer.from(line))
    await sandbox.pty.resize(handle.pid, { cols: 120, rows: 40 })
    await sandbox.files.write(`${base}/resized`, '')
    await eventually(() => output.includes('40 120'), 'the terminal has its new size')
    await sandbox.files.write(`${base}/seen`, '')
    const ended = await rejects(handle.wait(), CommandExitError)
    assert.equal(ended.exitCode, 5)
  })
}

const sections = [
  files,
  manyFiles,
  bigFile,
  directories,
  relativePaths,
  watching,
  commands,
  stdin,
  background,
  commandTimeout,
]
if (has('shell')) sections.push(shell, callbacks, terminal)
if (has('control')) {
  sections.push(
    lifecycle,
    defaults,
    listing,
    timeouts,
    refusals,
    killInterrupts,
    pauses,
    resumesByItself,
    signedUrls,
  )
  if (has('copies')) sections.push(pausesFilesOnly, snapshots, forks)
  if (has('shell')) sections.push(environment)
  if (has('templates')) sections.push(templates)
  if (has('built')) sections.push(builtElsewhere)
}

const shared = await create()
const failed = []
for (const section of sections) {
  if (wanted.length && !wanted.includes(section.name)) continue
  const began = Date.now()
  try {
    await section(shared)
    console.log(`ok   ${section.name} (${(Date.now() - began) / 1000} s)`)
  } catch (error) {
    failed.push(section.name)
    console.log(`FAIL ${section.name}`, error)
  }
}
for (const sandbox of made) await sandbox.kill()
if (failed.length) {
  console.error(`failed: ${failed.join(' ')}`)
  process.exit(1)
}
