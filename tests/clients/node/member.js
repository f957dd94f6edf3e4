// A member of a consumer group by kafkajs: `member.js ADDRESS GROUP TOPIC PROTOCOL SESSION_MS`.
// What it prints, and what is asked of it, is said in harness/members.py. The only protocol is roundrobin.

import { writeSync } from 'node:fs'
import kafkajs from 'kafkajs'

const [address, groupId, topic, , sessionMs] = process.argv.slice(2)
const COMMIT_INTERVAL_MS = 200

// At once: what was said before a kill is read after it.
const say = event => writeSync(1, `${Math.round((performance.timeOrigin + performance.now()) * 1000)} ${event}\n`)

const kafka = new kafkajs.Kafka({
  brokers: [address],
  logLevel: kafkajs.logLevel.WARN,
  retry: { initialRetryTime: 100, maxRetryTime: 500, retries: 100 },
})
const consumer = kafka.consumer({
  groupId,
  sessionTimeout: Number(sessionMs),
  heartbeatInterval: 500,
  metadataMaxAge: 5000,
  maxWaitTimeInMs: 100,
})

const uncommitted = new Map()
let committedAt = Date.now()
let refusedSince = null
let leaving = false

// One at a time: the client sends a commit that failed again by itself, and an older one must not come after a newer.
let committing = null
function commit() {
  committing ??= commitOnce().finally(() => {
    committing = null
  })
  return committing
}

// What fails is tried again with the next call, or by who owns the partition then.
async function commitOnce() {
  committedAt = Date.now()
  const offsets = [...uncommitted].map(([partition, offset]) => ({ topic, partition, offset: String(offset) }))
  if (offsets.length === 0) return
  try {
    await consumer.commitOffsets(offsets)
  } catch (refused) {
    say(`refused ${refused.name}`)
    refusedSince ??= Date.now()
    // Not awaited: it waits for the batch in hand, which waits for this.
    if (!leaving && Date.now() - refusedSince > 2 * Number(sessionMs)) beginAnew()
  }
}

// A client whose connection ends while it joins again, after it was told that it is no member, goes on without an id: it
// neither beats nor joins any more, and says nothing (kafkajs 2.2.4). Its user sees that commits are refused for too long.
async function beginAnew() {
  refusedSince = null
  say('lost all')
  await consumer.stop()
  await run()
}

// The call above may return without having sent anything; this says what the broker has acknowledged.
consumer.on(consumer.events.COMMIT_OFFSETS, ({ payload }) => {
  refusedSince = null
  for (const { partitions } of payload.topics) {
    for (const { partition, offset } of partitions) {
      say(`committed ${partition} ${offset}`)
      if (uncommitted.get(Number(partition)) === BigInt(offset)) uncommitted.delete(Number(partition))
    }
  }
})

// The client does not say what is taken away: an assignment replaces the one before.
consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
  uncommitted.clear()
  refusedSince = null
  say('revoked all')
  say(`assigned ${(payload.memberAssignment[topic] ?? []).join(',')}`)
})
consumer.on(consumer.events.CRASH, ({ payload }) => say(`error ${payload.error.message}`))

// Begins to consume.
function run() {
  return consumer.run({
    autoCommit: false,
    partitionsConsumedConcurrently: 1,
    eachBatch: async ({ batch, resolveOffset, isRunning, isStale }) => {
      for (const message of batch.messages) {
        if (leaving || !isRunning() || isStale()) break
        say(`record ${batch.partition} ${message.offset}`)
        uncommitted.set(batch.partition, BigInt(message.offset) + 1n)
        resolveOffset(message.offset)
      }
      if (Date.now() - committedAt >= COMMIT_INTERVAL_MS) await commit()
    },
  })
}

await consumer.connect()
await consumer.subscribe({ topic, fromBeginning: true })
await run()
const ticking = setInterval(commit, COMMIT_INTERVAL_MS)

process.once('SIGTERM', async () => {
  // What has left cannot commit.
  leaving = true
  clearInterval(ticking)
  await committing
  await commit()
  await consumer.disconnect()
  say('left')
  process.exit(0)
})
