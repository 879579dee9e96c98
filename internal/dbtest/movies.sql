-- A small films database, made up for the tests. It has the tables that the
-- pipelines of testdata/osiris extract: actors, directors, movie_actors,
-- movies, reviews. Plain SQL that MySQL and MariaDB take.

CREATE TABLE directors (
	director_id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
	name VARCHAR(100) NOT NULL,
	nationality VARCHAR(60),
	birth_date DATE,
	biography TEXT
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE actors (
	actor_id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
	name VARCHAR(100) NOT NULL,
	birth_date DATE,
	gender ENUM('female', 'male', 'other'),
	active TINYINT(1) NOT NULL DEFAULT 1
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE movies (
	movie_id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
	title VARCHAR(200) NOT NULL,
	director_id INT UNSIGNED NOT NULL,
	release_year YEAR NOT NULL,
	runtime_minutes SMALLINT UNSIGNED NOT NULL,
	budget_usd BIGINT UNSIGNED NOT NULL,
	rating DECIMAL(3,1),
	genres SET('action', 'comedy', 'drama', 'documentary', 'science fiction') NOT NULL,
	tagline VARCHAR(300),
	FOREIGN KEY (director_id) REFERENCES directors (director_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE movie_actors (
	movie_id INT UNSIGNED NOT NULL,
	actor_id INT UNSIGNED NOT NULL,
	role VARCHAR(100),
	billing TINYINT UNSIGNED NOT NULL,
	PRIMARY KEY (movie_id, actor_id),
	FOREIGN KEY (movie_id) REFERENCES movies (movie_id),
	FOREIGN KEY (actor_id) REFERENCES actors (actor_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE reviews (
	review_id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
	movie_id INT UNSIGNED NOT NULL,
	reviewer VARCHAR(80) NOT NULL,
	score DOUBLE NOT NULL,
	body TEXT,
	helpful BIGINT NOT NULL DEFAULT 0,
	created_at DATETIME NOT NULL,
	FOREIGN KEY (movie_id) REFERENCES movies (movie_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

INSERT INTO directors (director_id, name, nationality, birth_date, biography) VALUES
	(1, 'Ludmila Dvořáková', 'Czech', '1961-03-14', 'Began with documentaries, \"mostly of rivers\".'),
	(2, 'Søren Ægidius', 'Danish', '1948-11-30', NULL),
	(3, 'Keiko Tanabe', NULL, NULL, 'Two lines,\nthe second of which matters.'),
	(4, 'Amara O''Neill', 'Irish', '1979-02-28', '');

INSERT INTO actors (actor_id, name, birth_date, gender, active) VALUES
	(1, 'Ines Calderón', '1980-07-01', 'female', 1),
	(2, 'Tomáš Kučera', '1955-12-24', 'male', 0),
	(3, '山田 花', '1992-02-29', 'female', 1),
	(4, 'Robin Vale', NULL, 'other', 1),
	(5, 'Oluwaseun Bright', '1987-05-17', NULL, 1),
	(6, 'Grete Holm', '1931-01-09', 'female', 0);

INSERT INTO movies (movie_id, title, director_id, release_year, runtime_minutes, budget_usd, rating, genres, tagline) VALUES
	(1, 'The Weir', 1, 1994, 101, 1200000, 7.8, 'drama', 'Water finds its way.'),
	(2, 'Night Ferry, Day Ferry', 2, 2001, 88, 3500000, 6.4, 'comedy,drama', NULL),
	(3, 'Zero Point Garden 🌱', 3, 2019, 132, 87000000, 8.9, 'action,science fiction', 'Nothing grows. Yet.'),
	(4, 'A Question of Salt', 4, 2023, 95, 0, NULL, 'documentary', ''),
	(5, 'Upstream', 1, 2008, 115, 18446744073709551615, 7.0, 'drama', 'She said: \"no\".');

INSERT INTO movie_actors (movie_id, actor_id, role, billing) VALUES
	(1, 2, 'The miller', 1),
	(1, 6, 'His mother', 2),
	(2, 1, 'Captain', 1),
	(2, 4, NULL, 3),
	(3, 3, 'Dr. Hana', 1),
	(3, 5, 'Pilot', 2),
	(3, 1, 'The voice', 7),
	(5, 2, 'The miller, older', 1);

INSERT INTO reviews (review_id, movie_id, reviewer, score, body, helpful, created_at) VALUES
	(1, 1, 'mara', 8.5, 'Slow, and worth it.', 12, '1999-12-31 23:59:59'),
	(2, 1, 'anon', 3.25, NULL, -4, '2004-02-29 00:00:00'),
	(3, 2, 'jo_k', 6, 'Half of it is a joke; the other half isn''t.', 0, '2010-06-15 08:30:00'),
	(4, 3, 'hana_fan', 10, '最高!', 9007199254740993, '2020-01-01 12:00:00'),
	(5, 3, 'mara', 0.1, 'I fell asleep\tand woke up, twice.', 3, '2021-10-31 02:30:00'),
	(6, 5, 'anon', 7.75, '', 1, '2024-03-10 17:45:12');
