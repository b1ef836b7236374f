PRAGMA application_id = 1330791240;
BEGIN TRANSACTION;
CREATE TABLE accounts (
	provider VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	first_id VARCHAR(255) NOT NULL, 
	PRIMARY KEY (provider, host, id)
);
CREATE TABLE calibrations (
	judge VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (judge)
);
CREATE TABLE checkpoints (
	run_id VARCHAR(64) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (run_id, id)
);
CREATE TABLE deliveries (
	id VARCHAR(255) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE deployment_transitions (
	id INTEGER NOT NULL, 
	deployment_id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	raw_state TEXT, 
	attempt INTEGER NOT NULL, 
	actor TEXT NOT NULL, 
	note TEXT, 
	PRIMARY KEY (id)
);
CREATE TABLE deployments (
	id VARCHAR(64) NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	provider VARCHAR(64) NOT NULL, 
	host TEXT NOT NULL, 
	job_id TEXT NOT NULL, 
	sandbox BOOLEAN NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	over BOOLEAN NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	updated_at VARCHAR(40) NOT NULL, 
	attempt INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE events (
	seq INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	id TEXT NOT NULL, 
	from_host BOOLEAN NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "events" VALUES(1,'run-1qrn0nq0kvxa','e1',1,'2026-01-01T00:00:00.000000+00:00','{"id":"e1","at":"2026-01-01T00:00:00Z","level":"info","message":"hi","type":"message","step":null,"data":{}}');
INSERT INTO "events" VALUES(2,'run-1qrn0np8m3x2','e1',1,'2026-01-01T00:00:00.000000+00:00','{"id":"e1","at":"2026-01-01T00:00:00Z","level":"info","message":"hi","type":"message","step":null,"data":{}}');
CREATE TABLE leases (
	name VARCHAR(255) NOT NULL, 
	owner TEXT, 
	fence INTEGER NOT NULL, 
	expires_at VARCHAR(40) NOT NULL, 
	boot TEXT NOT NULL, 
	expires_uptime FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('run:run-1qrn0nm4jpd1',NULL,1,'2026-11-25T02:12:58.983044+00:00','8a453b40-2d44-4751-8e18-003bac466c0a',3228.462857359);
INSERT INTO "leases" VALUES('run:run-1qrn0np8m3x2',NULL,1,'2026-11-25T02:12:59.014485+00:00','8a453b40-2d44-4751-8e18-003bac466c0a',3228.494296136);
INSERT INTO "leases" VALUES('run:run-1qrn0nq0kvxa',NULL,1,'2026-11-25T02:12:59.044369+00:00','8a453b40-2d44-4751-8e18-003bac466c0a',3228.524180911);
CREATE TABLE metrics (
	run_id VARCHAR(64) NOT NULL, 
	step INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (run_id, step)
);
INSERT INTO "metrics" VALUES('run-1qrn0nq0kvxa',1,'{"step":1,"values":{"train_loss":1.0},"at":null,"epoch":null}');
INSERT INTO "metrics" VALUES('run-1qrn0np8m3x2',1,'{"step":1,"values":{"train_loss":1.0},"at":null,"epoch":null}');
CREATE TABLE notifications (
	run_id VARCHAR(64) NOT NULL, 
	channel VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	owner TEXT NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (run_id, channel)
);
CREATE TABLE orchestrate_meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "orchestrate_meta" VALUES('schema','4');
CREATE TABLE pauses (
	account VARCHAR(255) NOT NULL, 
	since VARCHAR(40) NOT NULL, 
	until VARCHAR(40) NOT NULL, 
	PRIMARY KEY (account)
);
CREATE TABLE ratings (
	seq INTEGER NOT NULL, 
	review_id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
CREATE TABLE records (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE reviews (
	id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE runs (
	id VARCHAR(64) NOT NULL, 
	ref VARCHAR(64) NOT NULL, 
	name VARCHAR(64), 
	provider VARCHAR(64) NOT NULL, 
	host TEXT NOT NULL, 
	sandbox BOOLEAN NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	job_id TEXT, 
	spec_hash VARCHAR(64) NOT NULL, 
	dataset_digest VARCHAR(64) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	updated_at VARCHAR(40) NOT NULL, 
	attempt INTEGER NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	closed BOOLEAN NOT NULL, 
	due_at VARCHAR(40) NOT NULL, 
	bill_usd TEXT, 
	committed_usd TEXT, 
	record TEXT NOT NULL, account TEXT, idempotency_key VARCHAR(255), made_by TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (ref)
);
INSERT INTO "runs" VALUES('run-1qrn0nm4jpd1','orc-1qrn0nm4jpd1','s0','paper','file:///tmp/schema1/host',0,'submitted','running','job-c36adcf3c3a0','a57d499edb39268db58e169b270657c3467b5ebb273d69302173ee1cab57a657','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T02:12:28.932010+00:00','2026-11-25T02:12:29.059348+00:00',1,0,0,'2026-11-25T02:12:29.059594+00:00',NULL,NULL,'{"id":"run-1qrn0nm4jpd1","ref":"orc-1qrn0nm4jpd1","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s0"},"spec_hash":"a57d499edb39268db58e169b270657c3467b5ebb273d69302173ee1cab57a657","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"running","raw_status":"running","job_id":"job-c36adcf3c3a0","job_kind":null,"created_at":"2026-11-25T02:12:28.932010Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":null,"tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES('run-1qrn0np8m3x2','orc-1qrn0np8m3x2','s1','paper','file:///tmp/schema1/host',0,'submitted','succeeded','job-446eaa6ff176','0306b05c8a19d80bccf477c93afab3adc60847fb89af13ffbe6326243438f55c','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T02:12:29.000919+00:00','2026-11-25T02:12:29.059348+00:00',1,0,1,'2026-11-25T02:12:29.064424+00:00',NULL,NULL,'{"id":"run-1qrn0np8m3x2","ref":"orc-1qrn0np8m3x2","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s1"},"spec_hash":"0306b05c8a19d80bccf477c93afab3adc60847fb89af13ffbe6326243438f55c","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-446eaa6ff176","job_kind":null,"created_at":"2026-11-25T02:12:29.000919Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":"2026-11-25T02:12:29.059348Z","tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES('run-1qrn0nq0kvxa','orc-1qrn0nq0kvxa','s2','paper','file:///tmp/schema1/host',0,'submitted','succeeded','job-c1e7d2b4c057','60097845da58ce5b27ba2f04a2c0cf9d87ae62bbf0db78d5f547e56ab808d200','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T02:12:29.024878+00:00','2026-11-25T02:12:29.059348+00:00',1,0,1,'2026-11-25T02:12:29.065227+00:00',NULL,NULL,'{"id":"run-1qrn0nq0kvxa","ref":"orc-1qrn0nq0kvxa","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s2"},"spec_hash":"60097845da58ce5b27ba2f04a2c0cf9d87ae62bbf0db78d5f547e56ab808d200","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-c1e7d2b4c057","job_kind":null,"created_at":"2026-11-25T02:12:29.024878Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":"2026-11-25T02:12:29.059348Z","tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}',NULL,NULL,NULL);
CREATE TABLE stamps (
	run_id VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	boot VARCHAR(255) NOT NULL, 
	uptime FLOAT NOT NULL, 
	PRIMARY KEY (run_id, attempt, boot)
);
INSERT INTO "stamps" VALUES('run-1qrn0nm4jpd1',1,'8a453b40-2d44-4751-8e18-003bac466c0a',3198.460878312);
INSERT INTO "stamps" VALUES('run-1qrn0np8m3x2',1,'8a453b40-2d44-4751-8e18-003bac466c0a',3198.491090977);
INSERT INTO "stamps" VALUES('run-1qrn0nq0kvxa',1,'8a453b40-2d44-4751-8e18-003bac466c0a',3198.520747796);
CREATE TABLE transitions (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	raw_status TEXT, 
	attempt INTEGER NOT NULL, 
	actor TEXT NOT NULL, 
	note TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "transitions" VALUES(1,'run-1qrn0nm4jpd1','2026-11-25T02:12:28.932010+00:00','intent','submitting',NULL,0,'vm:25325:3c0251','intent');
INSERT INTO "transitions" VALUES(2,'run-1qrn0nm4jpd1','2026-11-25T02:12:28.972390+00:00','uploaded','submitting',NULL,0,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(3,'run-1qrn0nm4jpd1','2026-11-25T02:12:28.980417+00:00','submitting','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(4,'run-1qrn0nm4jpd1','2026-11-25T02:12:28.993469+00:00','submitted','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(5,'run-1qrn0np8m3x2','2026-11-25T02:12:29.000919+00:00','intent','submitting',NULL,0,'vm:25325:3c0251','intent');
INSERT INTO "transitions" VALUES(6,'run-1qrn0np8m3x2','2026-11-25T02:12:29.009526+00:00','uploaded','submitting',NULL,0,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(7,'run-1qrn0np8m3x2','2026-11-25T02:12:29.010796+00:00','submitting','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(8,'run-1qrn0np8m3x2','2026-11-25T02:12:29.017138+00:00','submitted','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(9,'run-1qrn0nq0kvxa','2026-11-25T02:12:29.024878+00:00','intent','submitting',NULL,0,'vm:25325:3c0251','intent');
INSERT INTO "transitions" VALUES(10,'run-1qrn0nq0kvxa','2026-11-25T02:12:29.037423+00:00','uploaded','submitting',NULL,0,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(11,'run-1qrn0nq0kvxa','2026-11-25T02:12:29.040415+00:00','submitting','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(12,'run-1qrn0nq0kvxa','2026-11-25T02:12:29.049273+00:00','submitted','submitting',NULL,1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(13,'run-1qrn0nm4jpd1','2026-11-25T02:12:29.059348+00:00','submitted','running','running',1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(14,'run-1qrn0np8m3x2','2026-11-25T02:12:29.059348+00:00','submitted','succeeded','done',1,'vm:25325:3c0251',NULL);
INSERT INTO "transitions" VALUES(15,'run-1qrn0nq0kvxa','2026-11-25T02:12:29.059348+00:00','submitted','succeeded','done',1,'vm:25325:3c0251',NULL);
CREATE TABLE uploads (
	provider VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	account VARCHAR(255) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (provider, host, account, digest)
);
INSERT INTO "uploads" VALUES('paper','file:///tmp/schema1/host','','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T02:12:28.963446+00:00','{"provider":"paper","digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","train_id":"file-dddddddd","validation_id":null,"details":{}}');
CREATE INDEX runs_open ON runs (closed, provider);
CREATE INDEX runs_by_job ON runs (provider, job_id);
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX ix_transitions_run_id ON transitions (run_id);
CREATE UNIQUE INDEX events_once ON events (run_id, id);
CREATE INDEX ix_records_run_id ON records (run_id);
CREATE INDEX ix_deployments_run_id ON deployments (run_id);
CREATE UNIQUE INDEX deployments_once ON deployments (provider, job_id) WHERE NOT "over";
CREATE INDEX ix_deployment_transitions_deployment_id ON deployment_transitions (deployment_id);
CREATE UNIQUE INDEX runs_by_key ON runs (idempotency_key);
CREATE INDEX ix_ratings_review_id ON ratings (review_id);
COMMIT;
