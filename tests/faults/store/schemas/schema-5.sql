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
CREATE TABLE experiment_counts (
	experiment VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY (experiment, name)
);
CREATE TABLE experiment_phases (
	experiment VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (experiment, number)
);
CREATE TABLE experiments (
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
CREATE TABLE exposures (
	experiment VARCHAR(64) NOT NULL, 
	person VARCHAR(64) NOT NULL, 
	phase INTEGER NOT NULL, 
	tuned BOOLEAN NOT NULL, 
	chance FLOAT NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (experiment, person, phase)
);
CREATE TABLE gateway_audit (
	seq INTEGER NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
CREATE TABLE gateway_jobs (
	id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	project VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	fewest_retries INTEGER NOT NULL, 
	idempotency_key VARCHAR(255), 
	run_id VARCHAR(64), 
	open BOOLEAN NOT NULL, 
	tuned VARCHAR(255) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE gateway_keys (
	name VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (hash)
);
CREATE TABLE gateway_objects (
	kind VARCHAR(32) NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	project VARCHAR(64) NOT NULL, 
	parent VARCHAR(255), 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (kind, id)
);
CREATE TABLE leases (
	name VARCHAR(255) NOT NULL, 
	owner TEXT, 
	fence INTEGER NOT NULL, 
	expires_at VARCHAR(40) NOT NULL, 
	boot TEXT NOT NULL, 
	expires_uptime FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE metrics (
	run_id VARCHAR(64) NOT NULL, 
	step INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (run_id, step)
);
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
CREATE TABLE outcomes (
	seq INTEGER NOT NULL, 
	experiment VARCHAR(64) NOT NULL, 
	person VARCHAR(64) NOT NULL, 
	phase INTEGER NOT NULL, 
	metric VARCHAR(64) NOT NULL, 
	value FLOAT NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	"key" VARCHAR(64), 
	PRIMARY KEY (seq)
);
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
	record TEXT NOT NULL, 
	account TEXT, 
	idempotency_key VARCHAR(255), 
	made_by TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (ref)
);
CREATE TABLE stamps (
	run_id VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	boot VARCHAR(255) NOT NULL, 
	uptime FLOAT NOT NULL, 
	PRIMARY KEY (run_id, attempt, boot)
);
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
CREATE TABLE uploads (
	provider VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	account VARCHAR(255) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (provider, host, account, digest)
);
CREATE TABLE queue (
	id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	position INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE searches (
	id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE trials (
	search_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (search_id, number)
);
CREATE UNIQUE INDEX outcomes_once ON outcomes (experiment, "key");
CREATE INDEX outcomes_of ON outcomes (experiment, metric);
CREATE INDEX runs_by_age ON runs (created_at);
CREATE UNIQUE INDEX runs_by_key ON runs (idempotency_key);
CREATE INDEX runs_open ON runs (closed, provider);
CREATE INDEX runs_by_job ON runs (provider, job_id);
CREATE INDEX ix_transitions_run_id ON transitions (run_id);
CREATE UNIQUE INDEX events_once ON events (run_id, id);
CREATE INDEX ix_records_run_id ON records (run_id);
CREATE INDEX ix_deployments_run_id ON deployments (run_id);
CREATE UNIQUE INDEX deployments_once ON deployments (provider, job_id) WHERE NOT "over";
CREATE INDEX ix_deployment_transitions_deployment_id ON deployment_transitions (deployment_id);
CREATE INDEX ix_ratings_review_id ON ratings (review_id);
CREATE INDEX gateway_objects_of ON gateway_objects (kind, parent);
CREATE INDEX gateway_objects_by_age ON gateway_objects (kind, project, at);
CREATE INDEX gateway_jobs_by_model ON gateway_jobs (tuned);
CREATE INDEX gateway_jobs_open ON gateway_jobs (open);
CREATE INDEX gateway_jobs_by_age ON gateway_jobs (project, at);
CREATE INDEX gateway_jobs_by_request ON gateway_jobs ("key", digest);
CREATE UNIQUE INDEX gateway_jobs_by_key ON gateway_jobs ("key", idempotency_key);
CREATE INDEX queue_in_order ON queue (state, position);
COMMIT;
